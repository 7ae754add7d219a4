# Shared by the launch scripts; sourced, not run.
# shellcheck shell=bash

say() {
  if [[ -t 2 ]]; then
    printf '\033[1m[%s]\033[0m %s\n' "${0##*/}" "$*" >&2
  else
    printf '[%s] %s\n' "${0##*/}" "$*" >&2
  fi
}

die() {
  printf '[%s] error: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# Prints the comment block at the top of the calling script, without the "# ".
usage() { sed -n '2,/^[^#]/{ /^#/!q; s/^# \{0,1\}//; p; }' "$0"; }

# find_python MINIMUM [MAXIMUM]: prints the path of a Python whose version is in the range and
# that can make virtual environments. $PYTHON, when set, is the only one looked at.
find_python() {
  local minimum=$1 maximum=${2:-3.99} candidate found seen="" command
  local candidates=()
  if [[ -n "${PYTHON:-}" ]]; then
    candidates=("$PYTHON")
  else
    candidates=(python3 python3.13 python3.12 python3.11 python3.14 python)
    # Interpreters that a version manager holds but has not put on the PATH, newest first.
    while IFS= read -r found; do
      candidates+=("$found")
    done < <(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.*/bin/python3" | sort -rV)
  fi
  for command in "${candidates[@]}"; do
    candidate=$(command -v "$command" 2>/dev/null) || {
      seen+="  $command: not found"$'\n'
      continue
    }
    # Running it is the only safe question: a shim may exist for a version that does not.
    found=$("$candidate" - "$minimum" "$maximum" 2>/dev/null <<'PY'
import sys

low, high = (tuple(map(int, v.split("."))) for v in sys.argv[1:3])
version = ".".join(map(str, sys.version_info[:3]))
if not low <= sys.version_info[:2] <= high:
    print(f"no: version {version}")
else:
    try:
        import ensurepip, venv  # noqa: F401
    except ImportError:
        print("no-venv:" + sys.executable)
    else:
        print("yes:" + sys.executable)
PY
    ) || found="no: does not start"
    case "$found" in
      yes:*)
        printf '%s\n' "${found#yes:}"
        return 0
        ;;
      no-venv:*)
        if have_uv; then
          printf '%s\n' "${found#no-venv:}"
          return 0
        fi
        seen+="  $candidate: has no venv module (Debian and Ubuntu: apt install python3-venv)"$'\n'
        ;;
      *) seen+="  $candidate: ${found#no: }"$'\n' ;;
    esac
  done
  local range="$minimum or newer"
  [[ "$maximum" == 3.99 ]] || range="$minimum to $maximum"
  printf '[%s] no Python %s found. Looked at:\n%s' "${0##*/}" "$range" "$seen" >&2
  printf 'Install one, or name it: PYTHON=/path/to/python3 bash %s\n' "$0" >&2
  return 1
}

have_uv() { [[ "${JAXCLIP_NO_UV:-}" != 1 ]] && command -v uv >/dev/null 2>&1; }

# sha256 of what decides the contents of an environment.
_environment_hash() {
  local environment=$1 extras=$2
  {
    cat pyproject.toml
    printf '%s\n' "$PWD" "$environment" "$extras"
    "$environment/bin/python" -c 'import sys; print(sys.version)'
  } | { sha256sum 2>/dev/null || shasum -a 256; } | cut -d' ' -f1
}

# ensure_environment DIRECTORY EXTRA PYTHON_MINIMUM [PYTHON_MAXIMUM]: a virtual environment with
# this package (editable) and its EXTRA in it. Does nothing when pyproject.toml has not changed
# since the last time; an environment that is broken or too old is made anew. Run from the root.
# With $DRY_RUN=1 it only prints what it would do.
ensure_environment() {
  local environment=$1 extra=$2 minimum=$3 maximum=${4:-3.99} stamp hash python
  need_extras "$extra"
  stamp="$environment/.jaxclip-$extra"
  if [[ -x "$environment/bin/python" ]] &&
    "$environment/bin/python" -c "import sys; sys.exit(sys.version_info[:2] < (${minimum/./, }))" \
      2>/dev/null; then
    hash=$(_environment_hash "$environment" "$extra")
    if [[ -f "$stamp" && "$(<"$stamp")" == "$hash" ]]; then
      return 0
    fi
  else
    # It is cleared below: that must not hit a folder that someone keeps other things in.
    if [[ -e "$environment" && ! -e "$environment/pyvenv.cfg" && -n "$(ls -A "$environment")" ]]; then
      die "$environment is no virtual environment and not empty; give another place in JAXCLIP_VENV"
    fi
    python=$(find_python "$minimum" "$maximum") || exit 1
    say "making $environment with $python"
    if have_uv; then
      run uv venv --quiet --clear --python "$python" "$environment"
    else
      run "$python" -m venv --clear "$environment"
    fi
  fi
  say "installing jaxclip[$extra] into $environment: takes minutes the first time, and is done" \
    "again only when pyproject.toml has changed"
  # The old stamp goes first: an installation cut short must not look finished.
  [[ "${DRY_RUN:-0}" == 1 ]] || rm -f "$stamp"
  if have_uv; then
    run uv pip install --python "$environment/bin/python" --editable ".[$extra]"
  else
    run "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
      --editable ".[$extra]"
  fi
  if [[ "${DRY_RUN:-0}" != 1 ]]; then
    hash=$(_environment_hash "$environment" "$extra")
    printf '%s\n' "$hash" >"$stamp"
  fi
}

# test_workers PYTHON: how many processes the tests get: $JAXCLIP_WORKERS, or one a core, at most 4.
test_workers() {
  if [[ -n "${JAXCLIP_WORKERS:-}" ]]; then
    printf '%s\n' "$JAXCLIP_WORKERS"
  else
    "$1" -c 'import os; print(min(4, len(os.sched_getaffinity(0))))' 2>/dev/null || echo 1
  fi
}

# quote WORD ...: the words as one line that a shell would read back.
quote() {
  local word line=""
  for word in "$@"; do
    if [[ ! "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# run COMMAND ...: says the command and runs it; with $DRY_RUN=1 only prints it.
run() {
  if [[ "${DRY_RUN:-0}" == 1 ]]; then
    quote "$@"
  else
    printf '+ %s\n' "$(quote "$@")" >&2
    "$@"
  fi
}

# need COMMAND HINT: stops unless the command is there; a dry run needs none.
need() {
  [[ "${DRY_RUN:-0}" == 1 ]] || command -v "$1" >/dev/null 2>&1 || die "no '$1' on the PATH; $2"
}

# need_number OPTION VALUE: stops unless the value is a whole number of at least 1.
need_number() {
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || die "$1=$2 is not a whole number of at least 1"
}

# need_port OPTION VALUE: stops unless the value is a port.
need_port() {
  need_number "$1" "$2"
  ((${#2} <= 5 && $2 <= 65535)) || die "$1=$2 is no port; 1024 to 65535 are free to take"
}

# need_index OPTION VALUE: stops unless the value is a whole number from 0.
need_index() {
  [[ "$2" =~ ^(0|[1-9][0-9]*)$ ]] || die "$1=$2 is not a whole number, counted from 0"
}

# need_extras EXTRAS: stops unless pyproject.toml has all of them; pip would only warn, and leave
# out what they bring. $root is the checkout, by default the current folder.
need_extras() {
  local extra line here=0 known=""
  while IFS= read -r line; do
    case "$line" in
      "[project.optional-dependencies]") here=1 ;;
      "["*) here=0 ;;
      *) if [[ "$here" == 1 && "$line" =~ ^([a-z0-9_-]+)" = " ]]; then known+="${BASH_REMATCH[1]} "; fi ;;
    esac
  done <"${root:-.}/pyproject.toml"
  [[ "$1" =~ ^[a-z0-9_-]+(,[a-z0-9_-]+)*$ ]] || die "extras '$1' are no names with commas between; there are: $known"
  for extra in ${1//,/ }; do
    [[ " $known" == *" $extra "* ]] || die "there is no extra '$extra'; there are: $known"
  done
}

# absolute_from FOLDER PATH: prints the path, a relative one from the folder; addresses (gs://...)
# and ~ stay as they are, for `jaxclip` reads them itself.
absolute_from() {
  # shellcheck disable=SC2088
  case "$2" in
    /* | *://* | '~' | '~/'*) printf '%s\n' "$2" ;;
    *) printf '%s\n' "$1/$2" ;;
  esac
}

# with_absolute_workdir FOLDER ARGUMENT ...: ARGUMENTS becomes the arguments, in which a relative
# --workdir counts from the folder.
with_absolute_workdir() {
  local from=$1 next=0 argument
  shift
  ARGUMENTS=()
  for argument in "$@"; do
    if ((next == 1)); then
      argument=$(absolute_from "$from" "$argument")
      next=0
    elif [[ "$argument" == --workdir ]]; then
      next=1
    elif [[ "$argument" == --workdir=?* ]]; then
      argument=--workdir=$(absolute_from "$from" "${argument#--workdir=}")
    fi
    ARGUMENTS+=("$argument")
  done
}

# read_options FLAGS VALUES ARGUMENT ...: reads the options in front of the arguments, `--option value`
# or `--option=value`. Each sets the variable of its name, a flag to 1, the last one given counts;
# those written `option+` in VALUES add up, with blanks between. --dry_run sets DRY_RUN, --help prints
# the usage and ends. REST becomes the arguments from the first that is no option (a config,
# or `--`): options of `jaxclip train` come after the config and are not looked at.
# shellcheck disable=SC2034
read_options() {
  local _flags=" $1 " _values=" $2 " _option _value
  shift 2
  while (($# > 0)); do
    case "$1" in
      -h | --help)
        usage
        exit 0
        ;;
      --dry_run)
        DRY_RUN=1
        shift
        continue
        ;;
      --) break ;;
      -*) ;;
      *) break ;;
    esac
    _option=${1%%=*}
    _option=${_option#--}
    if [[ "$_option" =~ ^[a-z_]+$ && "$_flags" == *" $_option "* ]]; then
      [[ "$1" != *=* ]] || die "--$_option takes no value"
      printf -v "$_option" 1
      shift
      continue
    fi
    [[ "$_option" =~ ^[a-z_]+$ && "$_values" =~ " $_option"[+]?" " ]] ||
      die "unknown option $1 (options of \`jaxclip train\` come after the config)"
    if [[ "$1" == *=* ]]; then
      _value=${1#*=}
      shift
    else
      (($# > 1)) || die "$1 needs a value"
      _value=$2
      shift 2
    fi
    if [[ "$_values" == *" $_option+ "* && -n "${!_option}" ]]; then _value="${!_option} $_value"; fi
    printf -v "$_option" '%s' "$_value"
  done
  REST=("$@")
}
