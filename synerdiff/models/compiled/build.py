"""`python -m synerdiff.models.compiled.build STORE SUBJECT_JSON [--memory-bytes N]`: make one, at lowest priority."""

import argparse
import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synerdiff.models.compiled.calls import MOST_ROWS
from synerdiff.models.compiled.store import CompileSubject, PackageStore, load_package

# Compiled and eager answers may differ by this part of the largest value, by bytes of the dtype: rounding of the dtype,
# over some hundred layers.
_MOST_ERROR = {4: 1e-3, 2: 0.1}
_EXAMPLE_ROWS = 4
_CHECKED_ROWS = (1, 2, 3, 16)


class CompiledDiffers(Exception):
    """A package's answers differ from the eager ones, or the files no longer hold the served weights."""


def build(subject: CompileSubject, store: PackageStore) -> Path:
    """Compile a subject's component, unless the store has it by now. Returns where the package lies.

    Raises CompiledDiffers, ModelLoadError, and torch's errors where it cannot export or compile.
    """
    with store.compiling():
        found = store.find(subject)
        if found is not None:
            return found
        with store.scratch() as folder, _without_spaces(folder) as scratch:
            os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor", "TMPDIR": str(scratch)}
            return store.publish(_compile(subject, scratch), subject)


@contextlib.contextmanager
def _without_spaces(folder: Path) -> Iterator[Path]:
    """A path of the folder without spaces: inductor does not quote paths on its command lines."""
    if not any(map(str.isspace, str(folder))):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="synerdiff-") as beside:
        link = Path(beside) / "scratch"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _compile(subject: CompileSubject, scratch: Path) -> Path:
    import torch

    module, inputs_of = _component(subject)
    with torch.no_grad(), _inductor_settings(), _shape_settings():
        example = inputs_of(_EXAMPLE_ROWS)
        rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
        exported = torch.export.export(module, example, dynamic_shapes=tuple({0: rows} for _ in example))
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(scratch / "made.pt2"))
        _check(module, load_package(Path(package)), inputs_of)
    return Path(package)


def _component(subject: CompileSubject) -> tuple[Any, Any]:
    """The module to export, and its inputs for a count of rows."""
    from synerdiff.models.compiled import exported
    from synerdiff.models.device.opening import dtype_from_name
    from synerdiff.models.loading import load_unet_side, load_vae_side

    dtype, shape = dtype_from_name(subject.dtype), subject.latent_shape
    if subject.component == "unet":
        unet_side = load_unet_side(subject.model, dtype, variant=subject.variant)
        _check_weights(unet_side.unet, subject)
        return exported.exported_unet(unet_side.unet), lambda rows: exported.unet_inputs(unet_side, shape, rows)
    vae_side = load_vae_side(subject.model, dtype, variant=subject.variant, safety_checker=False)
    _check_weights(vae_side.vae, subject)
    return exported.ExportedVae(vae_side.vae).eval(), lambda rows: exported.vae_inputs(vae_side, shape, rows)


def _check_weights(module: Any, subject: CompileSubject) -> None:
    from synerdiff.models.digest import module_digest

    if module_digest(module) != subject.component_digest:
        raise CompiledDiffers(f"{subject.model}/{subject.component} holds other weights by now than are served")


def _shape_settings() -> Any:
    """A batch of one is a batch as any other."""
    from torch.fx.experimental import _config

    return _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _inductor_settings() -> Iterator[None]:
    """Weights folded in and packed for the kernels; each call uses its caller's threads."""
    from torch._inductor import config

    with config.patch({"freezing": True, "cpp.dynamic_threads": True, "cpp_wrapper_build_separate": True}):
        yield


def _check(module: Any, package: Any, inputs_of: Any) -> None:
    for rows in _CHECKED_ROWS:
        inputs = inputs_of(rows)
        expected, answered = module(*inputs).float(), package(*inputs).float()
        scale = expected.abs().max()
        error = float((expected - answered).abs().max() / scale)
        bound = _MOST_ERROR[inputs[0].element_size()]
        if not error <= bound:
            raise CompiledDiffers(f"at {rows} rows by {error:.2g} of the largest value, over {bound:g}")


def main() -> None:
    """Build the package of the command line, within its bound of memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("subject", type=CompileSubject.from_json)
    parser.add_argument("--memory-bytes", type=int, default=0)
    options = parser.parse_args()
    os.nice(19)
    if options.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory_bytes, options.memory_bytes))
    build(options.subject, PackageStore(options.store))


if __name__ == "__main__":
    main()
