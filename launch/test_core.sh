#!/usr/bin/env bash
# Runs the tests of the core (optim, losses, models) on Python 3.12 or newer, which gets the newest
# JAX, in a virtual environment of its own and without tensorflow.
#
#   bash launch/test_core.sh                  the tests of the core
#   bash launch/test_core.sh tests/optim -x   pytest with these arguments
#   bash launch/test_core.sh --install        make the environment and run nothing
#   bash launch/test_core.sh --dry_run [...]  print the commands and run none
#
# Exits with 77 when the machine has no such Python.
#
# Environment:
#   PYTHON            the Python to use (3.12 or newer; default: looks for one)
#   JAXCLIP_CORE_VENV the virtual environment (default: .venv-core)
#   JAXCLIP_WORKERS   processes for the tests (default: one a core, at most 4; 0: no xdist)
#   JAXCLIP_NO_UV=1   use pip even where uv is installed
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
cd "$root"

DRY_RUN=0
case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  --dry_run) DRY_RUN=1 && shift ;;
esac

environment=${JAXCLIP_CORE_VENV:-.venv-core}
find_python 3.12 >/dev/null || exit 77
ensure_environment "$environment" test-core 3.12
if [[ "${1:-}" == --install ]]; then exit; fi
python=$environment/bin/python
run "$python" -c 'import sys, jax; print("Python", sys.version.split()[0], "JAX", jax.__version__)'

if (($# > 0)); then
  run "$python" -m pytest "$@"
  exit
fi
workers=$(test_workers "$python")
parallel=()
if ((workers > 1)); then
  # The file during which a process died is run once more, not eight times.
  parallel=(--numprocesses "$workers" --dist loadfile --max-worker-restart 1)
fi
# Left out: closed forms of one rule or layer, which launch/test.sh asks on the JAX of Python 3.11, how
# rules stand in optax's wrappers (its release is the same there), how long they compile, and whether
# the towers are to the bit what they were before.
# What a newer JAX could break (jit, scan, vmap, sharding, donation, dtypes, checkpoints) the battery
# asks of every rule, and the files that stay of every loss and tower.
left_out=(
  tests/optim/test_{acclip,adaclip,adagc,adagn,aggc,asam,autoclip,cautious,clip_by_coordinate}.py
  tests/optim/test_{clip_radagrad_d,clippers,compile_time,convergence,dicesgd,docs}.py
  tests/optim/test_gradient_stabilizer.py
  tests/optim/test_{median_clip,other_trainers,private_mean_by_group,pytorch_optimizer}.py
  tests/optim/test_{spam,spectra_clip,stable_adamw,stable_spam,track_clipping_quantile,zclip}.py
  tests/losses/test_{self_critical,soft_targets,sweeps}.py
  tests/models/{products,sparsity}
  tests/models/test_{against_transformers,attention_logits,cures,dropout,experts,flat_products}.py
  tests/models/test_{every_preset,patch_choice,presets,prompts_and_attend,reductions}.py
  tests/models/test_{sparse_activation,tract,variants}.py
)
deselected=(
  tests/optim/test_battery.py::test_{chain,documentation_is_complete_and_its_example_runs}
  tests/optim/test_battery.py::test_{float64,float_hyperparameters_may_be_schedules}
  tests/optim/test_battery.py::test_float32_parameters_get_float32_updates_of_bfloat16_gradients
  tests/optim/test_battery.py::test_{huge_gradients_are_finite_numbers,nonfinite_gradients_leave_no_trace}
  tests/optim/test_battery.py::test_{masked_looks_only_at_what_it_may,partition_keeps_groups_apart}
  tests/optim/test_battery.py::test_multisteps_sees_the_mean_gradient
  tests/models/test_features.py::test_embeddings_are_those_of_before_to_the_bit_and_so_are_draws
  tests/models/test_features.py::test_features_are_what_they_are_called
  tests/models/test_features.py::test_keep_of_a_text_pools_where_the_text_ends
  tests/models/test_features.py::test_keep_runs_these_patches_with_their_own_positions
  tests/models/test_features.py::test_sums_of_activations_are_those_of_the_pass_itself
  tests/models/test_features.py::test_what_nobody_asks_for_costs_nothing
)
run "$python" -m pytest ${parallel[@]+"${parallel[@]}"} --durations=20 \
  "${left_out[@]/#/--ignore=}" "${deselected[@]/#/--deselect=}" tests/optim tests/losses tests/models
