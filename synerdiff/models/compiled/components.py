"""The UNet and the VAE of a worker as it calls them: compiled where there is a package for the latent shape."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from synerdiff.models.compiled.calls import Call, FastestCall
from synerdiff.models.compiled.exported import conditioning_of, in_order, unet_inputs, vae_inputs
from synerdiff.models.compiled.rehearsal import Rehearsal, likely_first
from synerdiff.models.compiled.store import CompileSubject, Component
from synerdiff.models.device.opening import dtype_name
from synerdiff.models.digest import component_digest
from synerdiff.models.family import Conditioning, Images, UnetSide, VaeSide
from synerdiff.models.graphed_unet import GraphedUnet, common_sizes
from synerdiff.telemetry import get_logger

log = get_logger("compiled")

LatentShape = tuple[int, int, int]

# Requests a package of a latent shape; the answer is a call, passed on later and from any thread. True: the package was
# made before, so the answer takes seconds.
Request = Callable[[LatentShape, Callable[[Call], None]], bool]

# Calls of a shape other than the native one before its package is requested, and the most such shapes.
_CALLS_WORTH_COMPILING = 200
_MOST_OTHER_SHAPES = 3

# A package is offered after this at the latest; the rest of its sizes is rehearsed then.
_OFFERED_WITHIN_S = 3.0
# The limit of a rehearsal, whose calls are all optional.
_REHEARSED_WITHIN_S = 10.0

_Rehearse = Callable[[Call, int, float], int]


def no_request(shape: LatentShape, install: Callable[[Call], None]) -> bool:
    """Nothing is compiled."""
    return False


def compile_subject(
    component: Component, model: Path, side: UnetSide | VaeSide, variant: str = "auto", digest: str = ""
) -> CompileSubject:
    """The subject that a worker compiles at the native size, with the weights it holds even if the files have changed.

    `variant`: the one that `side` was loaded with; `digest`: its `component_digest`, where it is known.
    """
    return CompileSubject(
        component=component,
        model=str(model.resolve()),
        component_digest=digest or component_digest(side),
        dtype=dtype_name(_loaded_dtype(side)),
        latent_shape=side.latent_shape(*side.native_size),
        variant=variant,
    )


def _loaded_dtype(side: UnetSide | VaeSide) -> torch.dtype:
    """The dtype by which `loading` makes this component again: the model's, or that which was set for the VAE."""
    if isinstance(side, VaeSide) and side.vae_dtype != side.family.vae_dtype(side.vae.config, side.dtype):
        return side.vae_dtype
    return side.dtype


class _Shapes:
    """A `FastestCall` per latent shape that is worth a package; None for the others. One thread calls it.

    `rehearse` takes a package's call of the native shape, the number of sizes already done and a limit in seconds; it
    returns the number done then. `soon`: the package of the native shape has only to be loaded.
    """

    def __init__(self, eager: Call, native: LatentShape, request: Request, rehearse: _Rehearse) -> None:
        self._eager = eager
        self._native = native
        self._request = request
        self._rehearse = rehearse
        self._calls: dict[LatentShape, FastestCall] = {}
        self._seen: dict[LatentShape, int] = {}
        self.soon = self._ask_for(native)

    def of(self, shape: LatentShape) -> FastestCall | None:
        found = self._calls.get(shape)
        if found is None and len(self._calls) <= _MOST_OTHER_SHAPES:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._seen[shape] >= _CALLS_WORTH_COMPILING:
                self._ask_for(shape)
        return found

    @property
    def execution(self) -> str:
        return "compiled" if self._calls[self._native].has_compiled else "eager"

    def _ask_for(self, shape: LatentShape) -> bool:
        self._calls[shape] = FastestCall(self._eager)

        def install(call: Call) -> None:
            if shape != self._native:
                self._calls[shape].offer(call)
                return
            done = self._rehearse(call, 0, _OFFERED_WITHIN_S)
            self._calls[shape].offer(call)
            self._rehearse(call, done, _REHEARSED_WITHIN_S)

        return self._request(shape, install)


class _Component(ABC):
    """A component with its packages, and its first calls made ahead of time in batches of `sizes`.

    `request` requests packages. `inputs_of`: example inputs of a call of so many rows, which may be cut.
    """

    def __init__(
        self,
        native: LatentShape,
        inputs_of: Callable[[LatentShape, int], tuple[Tensor, ...]],
        request: Request,
        sizes: Sequence[int],
    ) -> None:
        self._native = native
        self._inputs_of = inputs_of
        self._sizes = sizes
        self._rehearsal = Rehearsal(sizes)
        self._shapes = _Shapes(self._eager, native, request, self._rehearse)

    @property
    def execution(self) -> str:
        """The way of calls of the native size now: "eager" or "compiled"."""
        return self._shapes.execution

    def rehearse(self) -> None:
        """Make the first eager call of every size while no call comes; not where a package is about to be loaded."""
        if self.execution == "eager" and not self._shapes.soon:
            self._rehearse(self._eager, 0, _REHEARSED_WITHIN_S)

    def close(self) -> None:
        """Rehearse nothing more."""
        self._rehearsal.close()

    @abstractmethod
    def _eager(self, *inputs: Tensor) -> Tensor:
        """The component's own answer to the tensors of an exported call."""

    @torch.no_grad()
    def _rehearse(self, call: Call, done: int, limit_s: float) -> int:
        if done == len(self._sizes):
            return done
        inputs = self._inputs_of(self._native, max(self._sizes))
        made = self._rehearsal.run(lambda size: call(*(one[:size] for one in inputs)), limit_s, done)
        log.info("rehearsed", component=type(self).__name__, sizes=made)
        return made


class CompiledUnet(_Component):
    """UNet calls, compiled, captured or eager. One thread at a time.

    `request` requests packages. `most_rows`: of calls that `rehearse`, and a new package, make ahead of time.
    `graphed`: calls without a package.
    """

    def __init__(self, side: UnetSide, request: Request = no_request, most_rows: int = 0) -> None:
        self._side = side
        self.graphed = GraphedUnet(side)
        native = side.latent_shape(*side.native_size)
        super().__init__(native, partial(unet_inputs, side), request, likely_first(most_rows))

    def prepared(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Tensor]:
        """`UnetSide.predict`, with all done that comes before the call: see `GraphedUnet.prepared`."""
        fastest = self._shapes.of(_shape(latents))
        if fastest is None or not fastest.has_compiled:
            call = self.graphed.prepared(latents, timesteps, conditioning)
        else:
            call = partial(fastest, *in_order(latents.to(self._side.dtype), timesteps, conditioning))
        return partial(self._compute, call)

    def _compute(self, call: Callable[[], Tensor]) -> Tensor:
        with self._rehearsal.computing():
            return call()

    @torch.inference_mode()
    def capture_ahead(self, most_rows: int) -> None:
        """Where the device captures: calls of the native size, in every common batch size of up to `most_rows` rows.

        The largest goes first: the others find room in its memory. Raises DeviceFailed.
        """
        sizes = common_sizes(most_rows) if self._side.compute.captures else ()
        for rows in sizes:
            latents, timesteps, *told = self._inputs_of(self._native, rows)
            self.graphed.capture(latents, timesteps, conditioning_of(*told))
        if sizes:
            log.info("captured", sizes=len(sizes), refused=self.graphed.refused)

    def free(self) -> None:
        """Drop caches that can be made again."""
        self.graphed.free()

    def _eager(self, *inputs: Tensor) -> Tensor:
        latents, timesteps, *told = inputs
        return self._side.predict(latents, timesteps, conditioning_of(*told))


class CompiledVae(_Component):
    """Decodes of one VAE, compiled or eager. One thread at a time.

    `request` requests packages. `most_images`: of decodes that `rehearse`, and a new package, make ahead.
    """

    def __init__(self, side: VaeSide, request: Request = no_request, most_images: int = 0) -> None:
        self._side = side
        native = side.latent_shape(*side.native_size)
        super().__init__(native, partial(vae_inputs, side), request, range(1, most_images + 1))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Images:
        """As `VaeSide.decode`."""
        with self._rehearsal.computing():
            unscaled = self._side.unscaled(latents)
            fastest = self._shapes.of(_shape(unscaled)) or self._eager
            return self._side.images(fastest(unscaled))

    def _eager(self, *inputs: Tensor) -> Tensor:
        return self._side.decoded(*inputs)


def _shape(latents: Tensor) -> LatentShape:
    channels, height, width = latents.shape[1:]
    return channels, height, width
