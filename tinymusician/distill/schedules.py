"""What changes while a student trains: the stage α(t) and the temperature τ(t) (TinyMusician, eq. 4 and 5)."""

from __future__ import annotations


def stage(step: int, switch: int, transition: int = 0) -> float:
    """α(t): 1 before `switch`, 0 after, with a linear ramp of `transition` steps between (0: the paper's hard step)."""
    if step < switch:
        return 1.0
    if step >= switch + transition:
        return 0.0
    return 1.0 - (step - switch + 1) / (transition + 1)


def temperature(position: float, length: float, initial: float, final: float) -> float:
    """τ(t) = τ_init - (τ_init - τ_final)·t / t_max: linear decay, constant beyond t_max."""
    done = min(1.0, position / length) if length > 0 else 1.0
    return initial - (initial - final) * done
