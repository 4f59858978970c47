"""InfoNCE over batches that do not fit: GradCache (arXiv 2101.06983)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from elva.losses.infonce import InfoNCELoss
from elva.ops.library import refuse_tangents

Encode = Callable[[Any], Tensor]


class CachedInfoNCELoss(nn.Module):
    """:class:`InfoNCELoss` of a batch that is encoded in pieces; memory is that of one piece plus the embeddings.

    Forward encodes every piece without a graph and takes the loss's gradient in the embeddings. Backward encodes every
    piece again, with the same random numbers (dropout) and under the same autocast, and sends its embeddings' gradient
    through it. The result is the uncached gradient, for one more forward pass. float16 embeddings are taken to float32
    before the loss, so that their gradient, which a gradient scaler has not scaled yet, is not lost to underflow.

    Args:
        mini_batch_size: items encoded at once, >= 1.
        **options: of :class:`InfoNCELoss`, ``cross_device`` included.

    Example:
        >>> encoder = nn.Linear(4, 3)
        >>> loss = CachedInfoNCELoss(mini_batch_size=2)
        >>> loss(encoder, torch.randn(6, 4), torch.randn(6, 4)).backward()
        >>> encoder.weight.grad.shape
        torch.Size([3, 4])
    """

    def __init__(self, mini_batch_size: int = 32, **options: Any) -> None:
        super().__init__()
        if mini_batch_size < 1:
            raise ValueError(f"mini_batch_size must be at least 1, got {mini_batch_size}")
        self.mini_batch_size = mini_batch_size
        self.loss = InfoNCELoss(**options)

    def forward(
        self,
        encoder: Encode,
        query: Any,
        keys: Any,
        labels: Tensor | None = None,
        *,
        negatives: Any = None,
        **options: Tensor | None,
    ) -> Tensor:
        """Mean loss over the batch.

        Args:
            encoder: makes embeddings ``[n, D]`` of n inputs: a module, also one wrapped by DDP or FSDP2 (whose gradient
                exchange waits for the last piece), or any function, such as ``lambda x: model(**x)["embedding"]``
                around a module that returns a dict. FSDP2's forward is a collective: there every rank must have
                equally many pieces.
            query, keys, negatives: inputs that can be cut: a tensor (first dimension), a dict of such tensors, or a
                list. ``negatives``: N inputs, candidates of all queries. Pieces are encoded one by one: tensors with
                a graph of their own (another network's output) belong into the encoder, or are detached.
            labels, options: as in :meth:`InfoNCELoss.forward`.

        Raises:
            TypeError: inputs that cannot be cut, an encoder that returns no tensor. ValueError: as
                :class:`InfoNCELoss`, and for embeddings that are not one for each input.
        """
        groups = [list(_cut(inputs, self.mini_batch_size)) for inputs in (query, keys, negatives)]
        pieces = [piece for group in groups for piece in group]
        sizes = [len(group) for group in groups]
        states, parts = [], []
        with torch.no_grad():
            for piece in pieces:
                states.append(_Conditions())
                parts.append(_embeddings(encoder(piece), piece))
        refuse_tangents("CachedInfoNCELoss", *parts)
        parts = [part.float() if part.dtype == torch.float16 else part for part in parts]
        if not torch.is_grad_enabled():
            return self._loss(parts, sizes, labels, options)
        parts = [part.detach().requires_grad_() for part in parts]
        loss = self._loss(parts, sizes, labels, options)
        parameters = [p for p in self.loss.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, [*parts, *parameters])
        again = _Again(encoder, pieces, states, grads[: len(parts)])
        # Autograd calls a backward only where some input needs a gradient.
        ticket = torch.zeros((), device=loss.device, requires_grad=True)
        return _Replay.apply(loss.detach(), again, grads[len(parts) :], ticket, *parameters)

    def _loss(
        self, parts: list[Tensor], sizes: list[int], labels: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        first, second = sizes[0], sizes[0] + sizes[1]
        if not (first and second > first):
            raise ValueError("query and keys must hold at least one input each")
        negatives = torch.cat(parts[second:]) if sizes[2] else None
        query, keys = torch.cat(parts[:first]), torch.cat(parts[first:second])
        return self.loss(query, keys, labels, negatives=negatives, **options)


class _Conditions:
    """Random numbers and autocast when a piece is encoded, to be there again when it is encoded a second time."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self._autocast = [
            (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
            for device in ("cpu", "cuda")
        ]

    @contextmanager
    def restored(self) -> Iterator[None]:
        devices = [] if self._cuda is None else [torch.cuda.current_device()]
        with torch.random.fork_rng(devices=devices), ExitStack() as autocast:
            for device, dtype, enabled in self._autocast:
                if enabled != torch.is_autocast_enabled(device) or enabled:
                    autocast.enter_context(torch.autocast(device, dtype, enabled))
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda)
            yield


class _Again:
    """Encodes every piece with a graph and sends its embeddings' gradient through it."""

    def __init__(
        self, encoder: Encode, pieces: list[Any], states: list[_Conditions], grads: Sequence[Tensor]
    ) -> None:
        self._encoder = encoder
        self._work = list(zip(pieces, states, grads, strict=True))

    def backward(self, scale: Tensor) -> None:
        for number, (piece, state, grad) in enumerate(self._work, start=1):
            with (
                _exchange_at(self._encoder, number == len(self._work)),
                state.restored(),
                torch.enable_grad(),
            ):
                embeddings = _embeddings(self._encoder(piece), piece)
                if embeddings.requires_grad:
                    torch.autograd.backward(embeddings, (grad * scale).to(embeddings.dtype))


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, again: _Again, grads: Sequence[Tensor], ticket: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.again, ctx.grads = again, grads
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        ctx.again.backward(upstream[0])
        return None, None, None, None, *(grad * upstream[0] for grad in ctx.grads)


@contextmanager
def _exchange_at(encoder: Encode, last: bool) -> Iterator[None]:
    """Let DDP (no_sync) or FSDP2 (set_requires_gradient_sync) exchange gradients with the last piece only."""
    if hasattr(encoder, "set_requires_gradient_sync"):
        encoder.set_requires_gradient_sync(last)
        yield
    elif hasattr(encoder, "no_sync") and not last:
        with encoder.no_sync():
            yield
    else:
        yield


def _embeddings(returned: Any, piece: Any) -> Tensor:
    """What an encoder returned, if it is ``[n, D]`` for a piece of n inputs."""
    if not isinstance(returned, Tensor):
        raise TypeError(
            f"encoder must return a tensor [n, D], got {type(returned).__name__}; "
            "wrap it in a function that picks the embeddings"
        )
    count = len(next(iter(piece.values()))) if isinstance(piece, Mapping) else len(piece)
    if returned.ndim != 2 or returned.shape[0] != count:
        raise ValueError(f"encoder must return [{count}, D] for {count} inputs, got {list(returned.shape)}")
    return returned


def _cut(inputs: Any, size: int) -> Iterator[Any]:
    """Pieces of ``size`` inputs; none of ``None``."""
    if inputs is None:
        return
    if isinstance(inputs, Tensor):
        yield from inputs.split(size) if len(inputs) else ()
    elif isinstance(inputs, Mapping):
        lengths = {len(value) for value in inputs.values()}
        if len(lengths) != 1:
            raise ValueError(
                f"inputs: the entries of the dict have lengths {sorted(lengths)}, expected one length"
            )
        for first in range(0, lengths.pop(), size):
            yield {name: value[first : first + size] for name, value in inputs.items()}
    elif isinstance(inputs, list | tuple):
        yield from (inputs[first : first + size] for first in range(0, len(inputs), size))
    else:
        raise TypeError(f"inputs must be a tensor, a dict of tensors or a list, got {type(inputs).__name__}")
