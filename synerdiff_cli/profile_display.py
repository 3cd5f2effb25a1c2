"""The display of a profile being measured, and its summary afterwards."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from services.scheduler.profiles.measuring.course import ProfileCourse
from synerdiff.profiles import KNEE_WITHIN, Evidence, Profile
from synerdiff_cli.console import err, plain_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TELL_EVERY_S = 10.0


class ProfileDisplay(Progress):
    """`with ProfileDisplay() as display`, then `display.show(course)` a sweep; lines where there is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        super().__init__(*columns, TextColumn("{task.fields[left]}"), console=err, disable=not err.is_terminal)
        self._task: TaskID | None = None
        self._told_at = time.monotonic()

    def show(self, course: ProfileCourse) -> None:
        """Show the current measurement, the knee so far, and the longest remaining time in seconds."""
        knee = course.stages.curve().knee(KNEE_WITHIN) if course.ready else None
        so_far = f", knee at {knee.rows} rows ({knee.low} to {knee.high})" if knee else ""
        limited = math.isfinite(course.budget_s)
        total = round(course.budget_s) if limited else course.runs
        done = min(total, round(course.spent_s)) if limited else course.runs
        self._show(f"measuring {course.part}{so_far}", done, total, course.seconds_left)

    def show_fidelity(self, done: int, total: int, seconds_left: float) -> None:
        """How far the comparison of pictures is."""
        self._show("comparing pictures", done, total, seconds_left)

    def _show(self, what: str, done: int, total: int, seconds_left: float) -> None:
        left = f"at most {_duration(seconds_left)} left" if math.isfinite(seconds_left) else ""
        if self._task is None:
            self._task = self.add_task(what, total=total, left=left)
        self.update(self._task, description=what, completed=done, total=total, left=left)
        if not err.is_terminal and (time.monotonic() - self._told_at >= _TELL_EVERY_S or done == total):
            self._told_at = time.monotonic()
            err.print(f"{what}: {done} of {total}, {left}")


def summary(profile: Profile) -> Table:
    """A profile's content in a few lines, with its certainty."""
    caps, mechanisms = profile.caps, profile.mechanisms
    rows = caps.rows
    lines = [
        ("device", profile.subject.device or "unknown"),
        ("rows/s", _curve(profile)),
        ("knee", _knee(profile)),
        ("most tasks of an item", f"{caps.unet} ({rows} rows in {profile.latency_ms(rows, 0):.1f} ms)"),
        ("most decodes of an item", f"{caps.vae} ({profile.latency_ms(0, caps.vae):.1f} ms alone)"),
        ("side by side", _side_by_side(profile, rows, caps.vae)),
        (
            "pays here",
            ", ".join(name.replace("_", " ") for name in ("in_step", "beside", "chunking") if getattr(mechanisms, name))
            or "nothing",
        ),
        ("plans ahead", str(mechanisms.plan_ahead)),
        *((each.choice, _evidence(each)) for each in profile.evidence),
        ("skips of guidance", _budget(profile)),
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in lines:
        table.add_row(f"[bold]{name}[/]", value)
    return table


def shares_table(found: Sequence[tuple[str, Profile, float]]) -> Table:
    """The requested shares, their profiles and pictures per second, the best first."""
    table = plain_table("shares", "ran under", "pictures/s at best", "tasks", "in ms", "decodes", "in ms", "together")
    for label, profile, pictures_per_s in found:
        caps = profile.caps
        beside = profile.choice(caps.rows, caps.vae)
        table.add_row(
            label,
            profile.subject.shares,
            f"{pictures_per_s:.3g}",
            *(str(caps.unet), f"{profile.latency_ms(caps.rows, 0):.1f}"),
            *(str(caps.vae), f"{profile.latency_ms(0, caps.vae):.1f}"),
            f"{beside.ms:.1f}" if beside else "",
        )
    return table


def _curve(profile: Profile) -> str:
    rows = sorted({cell.rows for cell in profile.cells if not cell.decodes})
    return ", ".join(f"{1000 * count / profile.latency_ms(count, 0):.0f} at {count}" for count in rows)


def _knee(profile: Profile) -> str:
    knee = profile.knee_rows()
    sure = f", surely {profile.knee.low} to {profile.knee.high}" if profile.knee else ""
    return f"{knee} rows in {profile.latency_ms(knee, 0):.1f} ms{sure}"


def _evidence(found: Evidence) -> str:
    interval = f"{found.low:.2f} to {found.high:.2f}"
    return f"{'on' if found.taken else 'off'}: {found.ratio:.2f} of the time ({interval}, {found.pairs} pairs)"


def _side_by_side(profile: Profile, rows: int, decodes: int) -> str:
    together = profile.choice(rows, decodes)
    if together is None:
        return "not measured"
    gain = profile.overlap_gain(rows, decodes)
    return f"{together.ms:.1f} ms, {abs(gain):.0%} {'less' if gain >= 0 else 'more'} than one after the other"


def _budget(profile: Profile) -> str:
    budget = profile.skip_cfg
    return f"up to {budget.share:.0%}, {budget.predictor}" if budget else "not measured"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def plot_profile(profile: Profile, path: Path) -> None:
    """Draw a profile into a file: UNet rows/s over rows, decodes/s over decodes, and the map of overlap gains."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    unet, vae, gain = figure.subplots(1, 3)
    _draw_throughput(unet, profile, of_unet=True)
    _draw_throughput(vae, profile, of_unet=False)
    _draw_gains(gain, profile)
    subject = profile.subject
    shape = "x".join(map(str, subject.latent_shape))
    figure.suptitle(f"{subject.model}, latents {shape}, {subject.dtype}, {subject.device}, {subject.shares}", size=10)
    figure.savefig(path, dpi=110)


def _draw_throughput(axes: "Axes", profile: Profile, *, of_unet: bool) -> None:
    alone = [cell for cell in profile.cells if not (cell.decodes if of_unet else cell.rows)]
    for setting in sorted({cell.setting for cell in alone}):
        cells = sorted((c for c in alone if c.setting == setting), key=lambda c: c.rows + c.decodes)
        sizes = [cell.rows + cell.decodes for cell in cells]
        threads = setting.unet_threads if of_unet else setting.vae_threads
        names = [f"{threads} thread{'s' * (threads > 1)}"] if threads else ["alone"]
        names += [f"{setting.chunks} bands"] if setting.chunks > 1 else []
        per_s = [1000 * n / c.median_ms for n, c in zip(sizes, cells, strict=True)]
        sure = [1.96 * c.error * value for c, value in zip(cells, per_s, strict=True)]
        axes.errorbar(sizes, per_s, yerr=sure, fmt="o-", capsize=2, label=", ".join(names))
    cap = profile.caps.rows if of_unet else profile.caps.vae
    axes.axvline(cap, color="grey", linestyle=":", label=f"most of an item: {cap}")
    if of_unet:
        axes.axvline(profile.knee_rows(), color="black", linestyle="--", label=f"knee: {profile.knee_rows()} rows")
    if of_unet and profile.knee:
        low, high = profile.knee.low, profile.knee.high
        axes.axvspan(low, high, color="grey", alpha=0.2, label=f"knee at 95 %: {low} to {high}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("UNet rows" if of_unet else "decodes")
    axes.set_ylabel("rows per second" if of_unet else "decodes per second")
    axes.legend(fontsize=8)


def _draw_gains(axes: "Axes", profile: Profile) -> None:
    cells = [cell for cell in profile.cells if cell.rows and cell.decodes]
    axes.set_title("time saved side by side", size=10)
    axes.set_xlabel("UNet rows")
    axes.set_ylabel("decodes")
    if not cells:
        return
    rows, decodes = max(cell.rows for cell in cells), max(cell.decodes for cell in cells)
    gains = [[100 * profile.overlap_gain(r, v) for r in range(1, rows + 1)] for v in range(1, decodes + 1)]
    most = max(10.0, *(abs(value) for line in gains for value in line))
    extent = (0.5, rows + 0.5, 0.5, decodes + 0.5)
    image = axes.imshow(gains, origin="lower", aspect="auto", cmap="RdBu", vmin=-most, vmax=most, extent=extent)
    axes.plot([cell.rows for cell in cells], [cell.decodes for cell in cells], "k.", markersize=3)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label="% of one after the other; dots: measured")
