"""A profile as a picture: throughput against batch size, and the gain of running side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

from synerdiff.profiles import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
