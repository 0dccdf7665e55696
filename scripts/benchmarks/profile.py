"""Where the time of our training step goes, as a table."""

from __future__ import annotations

from benchmarks.rates import ENDLESS, ON_CPU, Plan, our_side

__all__ = ["profile_table"]

LEFT_OUT = "validation"


def profile_table(plan: Plan, on_gpu: bool) -> str:
    """Milliseconds of a step by part, the largest first; see ``scripts/peers/parts.py``."""
    environment = {} if on_gpu else ON_CPU
    with our_side(plan, "profile", plan.settings(*ENDLESS), environment) as ours:
        ours.turn()
        plain = ours.turn()
        said = ours.turn("profile")
    parts = {part: s for part, s in said["parts"].items() if not part.startswith(LEFT_OUT)}
    in_all = sum(parts.values())
    lines = ["| part of a step | ms | share |", "| --- | --- | --- |"]
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        ms = 1e3 * seconds / said["n_steps"]
        lines.append(f"| {part} | {ms:.3g} | {100 * seconds / in_all:.1f} % |")
    ms_plain = 1e3 * plain["seconds"] / plain["n_steps"]
    lines.append(f"| in all | {1e3 * in_all / said['n_steps']:.3g} | |")
    lines.append(f"| in all, without the profiler | {ms_plain:.3g} | |")
    return "\n".join(lines)
