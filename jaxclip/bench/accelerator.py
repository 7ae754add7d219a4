"""One command that measures a GPU or TPU in at most eight minutes.

    python -m jaxclip.bench accelerator                       # writes accelerator.json and .md
    python -m jaxclip.bench accelerator --small               # everything tiny: does it work here?

A ViT-B/16 step in bfloat16 (images/s, MFU, memory, attention implementations, compile times), the
contrastive losses plain and blockwise at 8k to 128k pairs, each transformation beside AdamW, and
exact accumulation. It needs jax, flax, optax and numpy, no data and no network, and uses the first
device.

MFU counts the matrix FLOPs of both encoders, forward and backward, without what is computed twice,
against the vendor's bfloat16 peak, or against one large product where that is not known. Memory is
what the compiled program needs: arguments, results, temporaries.

Each section runs in a process of its own within its share of the time. One that fails, hangs or
runs out of memory is reported and does not stop the others; rows that were done by then are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxclip.markdown import table
from jaxclip.registry import hint

SECONDS = 480.0

# Sections, in the order of their worth, and the share of the time that each may take; what one
# leaves is for those after it. This process leaves the device alone: one program at a time.
SHARES = {"step": 0.4, "losses": 0.2, "transformations": 0.25, "accumulation": 0.15}

# (section, seconds) -> (rows, status)
Measure = Callable[[str, float], tuple[list[dict[str, Any]], str]]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status: 1 if no section has a result."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it out")
    parser.add_argument("--sections", default=",".join(SHARES), help="with commas")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="time for all (default: %(default)g)"
    )
    parser.add_argument("--output", default="accelerator", help="files without their ending")
    parser.add_argument(
        "--one_process", action="store_true", help="all sections in this process, not cut off"
    )
    parser.add_argument("--rows", help=argparse.SUPPRESS)  # of the process of one section
    options = parser.parse_args(list(arguments))
    names = options.sections.split(",")
    for name in names:
        if name not in SHARES:
            near = hint(name, SHARES)
            parser.exit(2, f"jaxclip.bench accelerator: error: no section {name!r}{near}\n")
    if options.rows:
        return _section(names[0], options)

    def measure(name: str, seconds: float) -> tuple[list[dict[str, Any]], str]:
        with tempfile.TemporaryDirectory() as folder:
            rows = pathlib.Path(folder) / "rows"
            own = ["--sections", name, "--seconds", str(seconds), "--rows", str(rows)]
            own += ["--small"] if options.small else []
            if options.one_process:
                status = "" if main(own) == 0 else "failed"
            else:
                command = [sys.executable, "-m", "jaxclip.bench", "accelerator", *own]
                status = isolated(command, seconds)
            return read_rows(rows, status)

    result = run(names, SHARES, measure, options.seconds)
    text = as_markdown(result)
    print(text)
    for suffix, content in ((".json", json.dumps(result, indent=1) + "\n"), (".md", text + "\n")):
        pathlib.Path(options.output + suffix).write_text(content, encoding="utf-8")
    print(f"written: {options.output}.json, {options.output}.md", file=sys.stderr)
    return 0 if any(section["rows"] for section in result["sections"].values()) else 1


def run(
    names: Sequence[str], shares: dict[str, float], measure: Measure, seconds: float
) -> dict[str, Any]:
    """Measure sections one after the other.

    Args:
      names: of the sections.
      shares: share of the time of each; what one leaves is for those after it.
      measure: measures one, in so many seconds.
      seconds: for all of them.

    Returns:
      ``{"device": …, "seconds": …, "sections": {name: {"status", "seconds", "rows"}}}``; a status
      is ``"ok"`` or says what went wrong.
    """
    began = time.monotonic()
    device: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for place, name in enumerate(names):
        left = max(seconds - (time.monotonic() - began), 1.0)
        share = shares[name] / sum(shares[later] for later in names[place:])
        print(f"{name}: at most {left * share:.0f} s", file=sys.stderr, flush=True)
        start = time.monotonic()
        rows, status = measure(name, left * share)
        for row in rows:
            device |= row.pop("device_row", {})
        rows = [row for row in rows if row]
        taken = round(time.monotonic() - start, 1)
        found[name] = {"status": status or "ok", "seconds": taken, "rows": rows}
        print(f"{name}: {status or 'ok'}, {taken:.0f} s", file=sys.stderr, flush=True)
    return {**device, "seconds": round(time.monotonic() - began, 1), "sections": found}


def isolated(command: Sequence[str], seconds: float) -> str:
    """Run a command in a process of its own; returns what went wrong, empty where all went well."""
    # The share of the time is the section's own to keep; this is for one that hangs.
    try:
        done = subprocess.run(
            command, timeout=seconds, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    except subprocess.TimeoutExpired:
        return f"cut off after {seconds:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return f"failed ({how}): {lines[-1][:200] if lines else 'no message'}"


def read_rows(path: pathlib.Path, status: str) -> tuple[list[dict[str, Any]], str]:
    """The rows that a section's process wrote, and its status in so far as it wrote one."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # torn: it was cut off while writing
                continue
    notes = [row.pop("status") for row in rows if "status" in row]
    return [row for row in rows if row], status or "; ".join(notes)


def as_markdown(result: dict[str, Any]) -> str:
    """Tables of all sections."""
    parts = [
        f"{result.get('device', 'no device')}, jax {result.get('jax', '?')}, jaxclip "
        f"{result.get('jaxclip', '?')}; {result['seconds']:.0f} s"
    ]
    for name, section in result["sections"].items():
        title = f"### {name}"
        if section["status"] != "ok":
            title += f"\n\n{section['status']}"
        columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
        rows = [columns, *([_cell(row.get(key)) for key in columns] for row in section["rows"])]
        parts.append(title + ("\n\n" + table(rows) if columns else ""))
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _section(name: str, options: argparse.Namespace) -> int:
    """Measure one section and write its rows as they come."""
    from jaxclip.bench import accelerator_sections as sections

    # The rest is for what was begun in time.
    budget = sections.Budget(options.seconds * 0.8)
    sizes = sections.SMALL if options.small else sections.FULL
    with open(options.rows, "a", encoding="utf-8") as file:

        def emit(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

        emit({"device_row": sections.device()})
        try:
            for row in sections.SECTIONS[name](sizes, budget):
                emit(row)
        except TimeoutError as error:
            emit({"status": str(error)})
        except Exception as error:
            emit({"status": f"failed: {str(error).strip().splitlines()[0][:200]}"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
