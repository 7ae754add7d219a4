"""Benchmarks that anyone can run again: ``python -m jaxclip.bench NAME [OPTIONS]``.

Every benchmark times the thing and its reference in the same process, turn by turn, and reports
ratios; absolute times are shown for orientation only. Results go to ``docs/benchmarks.md``.
"""
