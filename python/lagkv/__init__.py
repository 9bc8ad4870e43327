"""KV-cache compression without attention weights: the C++ library lagkv on Python's arrays, in place.

Arrays are NumPy's, PyTorch's, or of any library that speaks DLPack, in CPU memory: float32, float16 or bfloat16, any strides.
Keys and values have the shape [heads, tokens, dim], or [batch, heads, tokens, dim] for sequences of equal length. Nothing is
copied.

    policy = lagkv.parse("lagkv:lag=128,ratio=0.25")
    cursor = lagkv.Cursor()                                   # one a layer and sequence
    tokens = lagkv.compress(policy, keys, values, cursor)     # after each prompt, or token
    keys, values = keys[..., :tokens, :], values[..., :tokens, :]

What is refused raises lagkv.Error with the library's own message: it names the value and the limit, and no row has moved. What is
no array or no number that the argument can be (a count of -1, say), or an unknown name, raises TypeError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Sequence, Tuple, Type, TypeVar, Union

from . import _core
from ._core import Candidates, Cursor, Error, Layer, Plan, Policy, Rope, Workspace, expected_queries

if TYPE_CHECKING:
    import numpy
    from typing_extensions import Unpack

    from ._types import Array, Offers

__version__: str = _core.version

__all__ = [
    "Candidates", "Cursor", "Error", "Layer", "Plan", "Policy", "Rope", "Workspace", "accumulate", "advance", "check", "compact",
    "compress", "compress_layers", "expected_queries", "fusion_options", "head_budgets", "make_policy", "methods", "moved",
    "parse", "peak_rows", "plan_eviction", "query_statistics", "rerotate", "score", "shared_options", "take_back", "take_out",
]

PolicyLike = Union[Policy, str]
T = TypeVar("T")


def _policy(policy: PolicyLike) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, str):
        return Policy(policy)
    raise TypeError(f"policy: must be a lagkv.Policy or a string, not {type(policy).__name__}")


def _layer(keys: Union[Layer, Array], values: Optional[Array], tokens: Optional[int], offers: Any) -> Layer:
    if not isinstance(keys, Layer):
        return Layer(keys, values, tokens, **offers)
    if values is not None or tokens is not None or offers:
        raise TypeError("values, tokens, offers: must not be given beside a lagkv.Layer, which has its own")
    return keys


def _of(kind: Type[T], name: str, x: Any) -> T:
    if not isinstance(x, kind):
        raise TypeError(f"{name}: must be a lagkv.{kind.__name__}, not {type(x).__name__}")
    return x


def _workspace(workspace: Optional[Workspace], threads: Optional[int]) -> Workspace:
    if workspace is None:
        return Workspace(1 if threads is None else threads)
    _of(Workspace, "workspace", workspace)
    if threads is not None:
        raise TypeError("threads: must not be given beside a workspace, which has its own")
    return workspace


def _toward(direction: str) -> Any:
    return _one_of(_core.toward, "direction", direction, ("front", "window"))


def _one_of(kind: Any, name: str, word: str, words: Tuple[str, ...]) -> Any:
    if word not in words:
        raise Error(f"{name}={word}: must be {' or '.join(words)}")
    return getattr(kind, word)


# ---- policies -----------------------------------------------------------------------------------------------------------


def parse(text: str) -> Policy:
    """The policy that a text describes: "lagkv:lag=128,ratio=0.25", "fuse:novelty+cur,keep=0.25", "full".

    Raises Error: an unknown name or key, or a value out of range. docs/methods.md lists all keys.
    """
    return Policy(text)


def _text(value: Any) -> str:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):  # numpy's too
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        if getattr(value, "ndim", None) == 0:  # an array of one number
            return _text(value.item())  # type: ignore[attr-defined]
        return "+".join(_text(v) for v in value)
    return repr(float(value)) if isinstance(value, float) else str(value)


def make_policy(name: str, **options: Any) -> Policy:
    """A policy by keywords: make_policy("lagkv", lag=128, ratio=0.25), make_policy("novelty", pre_rope=True, keep=0.25).

    Options are the keys of policy strings; an option of None is not given. True and False are yes and no. Lists are for fusions:
    make_policy("fuse", of=["novelty", "cur"], weights=[1, 0.5], keep=0.25). Raises Error as parse() does.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: must be a string, not {type(name).__name__}")
    given = [f"{key}={_text(value)}" for key, value in options.items() if value is not None]
    for option in given:  # one that comes from somewhere else must not set another
        if "," in option:
            raise Error(f"{name}: {option}: must have no comma")
    return Policy(name + (":" + ",".join(given) if given else ""))


def methods() -> List[Dict[str, Any]]:
    """All methods: name, meaning, source, what each reads, and its options as (key, default, what is accepted, meaning)."""
    return _core.methods()


def shared_options() -> List[Tuple[str, Any, str, str]]:
    """The options that every method but lagkv, streaming_llm and full takes: (key, default, what is accepted, meaning)."""
    return _core.shared_options()


def fusion_options() -> List[Tuple[str, Any, str, str]]:
    """The options that fuse takes beside them: (key, default, what is accepted, meaning)."""
    return _core.fusion_options()


def peak_rows(policy: PolicyLike, chunk: int, tokens: int) -> int:
    """The most rows that a layer has in use at once: what to allocate.

    tokens: length of the longest sequence. chunk: the most tokens that are appended between two calls of compress().
    """
    return _policy(policy).peak_rows(chunk, tokens)


# ---- the cache ----------------------------------------------------------------------------------------------------------


def check(policy: PolicyLike, keys: Union[Layer, Array], values: Optional[Array] = None, *, tokens: Optional[int] = None,
          any_length: bool = False, **offers: Unpack[Offers]) -> None:
    """Raises Error if the policy cannot work on this layer, or does not find what it reads. Reads no element.

    keys, values: [heads, tokens, dim], or [batch, heads, tokens, dim]; values may be None for a policy that does not read them.
    Or keys is a Layer. tokens: rows in use, the first ones; default: all. any_length: the caller can hold heads of different
    lengths (select=adaptive, select=by_head). offers: see Layer.
    """
    _core.check(_policy(policy), _layer(keys, values, tokens, offers), any_length)


def compress(policy: PolicyLike, keys: Union[Layer, Array], values: Optional[Array] = None, cursor: Optional[Cursor] = None, *,
             tokens: Optional[int] = None, direction: str = "front", workspace: Optional[Workspace] = None,
             threads: Optional[int] = None, **offers: Unpack[Offers]) -> int:
    """Drops what is due, moves the rows that stay, in place, advances the cursor; returns the rows now in use.

    Call it after attention has used the tokens appended (use, then compress), after each prompt or token. Most calls find
    nothing due. The GIL is released.

    keys, values: [heads, tokens, dim], or [batch, heads, tokens, dim]: all entries have the same rows in use, one cursor, and
    keep the same number of rows. Or keys is a Layer, whose `tokens` are then set. tokens: rows in use, the first ones; default:
    all. direction: "front", the rows in use are the first ones again; "window", the window stays where it is, survivors lie right
    before it, and the freed rows before them, after the sinks: for callers who take them out of a list of slots. threads: that
    share the heads, or the entries of the batch (default 1). workspace: scratch to be used again, with its own threads. offers:
    see Layer; positions and accumulated_attention move with the rows.

    Raises Error for what check() refuses, for read-only arrays, and if entries of the batch would keep different numbers of rows;
    cache and cursor are then as they were.
    """
    if cursor is None:
        raise TypeError("cursor: is missing: one a layer and sequence, lagkv.Cursor() for a new sequence")
    layer = _layer(keys, values, tokens, offers)
    _of(Cursor, "cursor", cursor)
    return _core.compress(_policy(policy), [layer], [cursor], _workspace(workspace, threads), _toward(direction), True)[0]


def compress_layers(policy: PolicyLike, layers: Sequence[Layer], cursors: Sequence[Cursor], *, direction: str = "front",
                    equal_counts: bool = True, workspace: Optional[Workspace] = None, threads: Optional[int] = None) -> List[int]:
    """compress() for all layers of a sequence, layers[i] with cursors[i], all or nothing; returns the rows now in use of each.

    What all layers drop is decided before the first row moves. equal_counts: refuse what would leave different numbers of rows in
    layers. Budgets that fall from layer to layer (pyramid) are each layer's own; they need equal_counts=False.
    """
    return _core.compress(_policy(policy), list(layers), list(cursors), _workspace(workspace, threads), _toward(direction),
                          equal_counts)


def plan_eviction(policy: PolicyLike, keys: Union[Layer, Array], values: Optional[Array] = None,
                  cursor: Optional[Cursor] = None, *, tokens: Optional[int] = None, workspace: Optional[Workspace] = None,
                  threads: Optional[int] = None, **offers: Unpack[Offers]) -> Any:
    """What compress() would drop, as a Plan, without touching the cache: for rows that lie on a device, and for ragged policies.

    Arguments as for compress(); cursor: default that of a new sequence. With a batch, a list of plans, one an entry. Apply a plan
    with compact(), or by keys[head, plan.rows(head)]; then call advance().
    """
    layer = _layer(keys, values, tokens, offers)
    at = Cursor() if cursor is None else _of(Cursor, "cursor", cursor)
    plans = _core.plan_eviction(_policy(policy), layer, at, _workspace(workspace, threads))
    return plans[0] if layer.batch is None else plans


def score(policy: PolicyLike, keys: Union[Layer, Array], values: Optional[Array] = None, *,
          candidates: Optional[Candidates] = None, tokens: Optional[int] = None, workspace: Optional[Workspace] = None,
          threads: Optional[int] = None, **offers: Unpack[Offers]) -> numpy.ndarray[Any, Any]:
    """The scores of the candidates, float32 [heads, candidates] (with a batch before, if there is one); higher stays.

    They are transformed, and fused if there are several scorers. candidates: of policy.due(cursor, tokens); default: all tokens
    between sinks and window of a new sequence, policy.all_candidates(tokens). Protected tokens have their own scores. Raises
    Error for a policy without scores (streaming_llm, full).
    """
    layer = _layer(keys, values, tokens, offers)
    if candidates is not None:
        _of(Candidates, "candidates", candidates)
    return _core.score(_policy(policy), layer, candidates, _workspace(workspace, threads))


def accumulate(policy: PolicyLike, keys: Union[Layer, Array], values: Optional[Array] = None, cursor: Optional[Cursor] = None, *,
               n: int, tokens: Optional[int] = None, workspace: Optional[Workspace] = None, threads: Optional[int] = None,
               **offers: Unpack[Offers]) -> None:
    """Adds the last n tokens to accumulated_attention and key_statistics, in place, where the policy reads them.

    Call it before compress(), with the tokens appended since the last time; for attention, with their queries or weights: as many
    are counted as are offered. Nothing happens for what is not offered. cursor: that of compress(); default: of a new sequence.
    """
    layer = _layer(keys, values, tokens, offers)
    at = Cursor() if cursor is None else _of(Cursor, "cursor", cursor)
    _core.accumulate(_policy(policy), layer, at, n, _workspace(workspace, threads))


def compact(array: Array, plan: Plan, *, direction: str = "front") -> None:
    """Moves the rows of an array [heads, tokens, dim] as a plan says, in place. plan.tokens_after(head) are then in use."""
    _core.compact(array, _of(Plan, "plan", plan), _toward(direction))


def advance(cursor: Cursor, plan: Plan, head: Optional[int] = None) -> None:
    """Moves the cursor past a plan that has been applied; head: as this head has it (default: the one that keeps most)."""
    _core.advance(_of(Cursor, "cursor", cursor), _of(Plan, "plan", plan), head)


def take_back(cursor: Cursor, rows: int) -> None:
    """The caller has removed rows from the end, so that `rows` of them are left: no further back than cursor.compressed."""
    _of(Cursor, "cursor", cursor).take_back(rows)


def take_out(cursor: Cursor, begin: int, end: int, *, gap: str = "kept") -> None:
    """The caller has removed rows [begin, end) of those in use and moved the later ones up.

    gap: "kept": later tokens have the positions that they had, and the removed ones count as dropped; "closed": they move up (a
    context shift). Rows appended since the last compress() count, too. Raises Error if begin > end.
    """
    positions = _one_of(_core.gap, "gap", gap, ("kept", "closed"))
    _of(Cursor, "cursor", cursor).take_out(begin, end, positions)


def rerotate(keys: Array, plan: Plan, rope: Rope, *, workspace: Optional[Workspace] = None) -> None:
    """Gives the keys [heads, tokens, dim] that stay consecutive positions, in place, after compact(keys, plan) toward the front.

    The next token's position is then plan.tokens_after(head), not cursor.seen().
    """
    _core.rerotate(keys, _of(Plan, "plan", plan), _of(Rope, "rope", rope), _workspace(workspace, None))


def moved(mean: Array, covariance: Optional[Array], rope: Rope, first: int, future: int = expected_queries, *,
          factors: Optional[Array] = None) -> Tuple[Any, ...]:
    """Statistics of queries before RoPE, moved to the positions [first, first + future): (mean, covariance, factors).

    mean: float32 [query heads, dim]. covariance: float32 [query heads, dim, dim], or None. factors: float32 [query heads, n,
    dim], vectors whose products f f^T add up to the covariance, or None. Offer the results as query_mean, query_covariance or
    query_factors. Source: ExpectedAttention, arXiv 2510.00636.
    """
    return _core.moved(mean, covariance, factors, _of(Rope, "rope", rope), first, future)


def head_budgets(importance: Sequence[Sequence[Iterable[float]]], share: float, least: float = 0) -> List[List[float]]:
    """[layer][head]: the budget of each head for select=by_head, once a model. The average is 1.

    importance[layer][head]: how much the head looks back at each token of texts, in any order; an array [layers, heads, tokens]
    will do (lagkv.transformers.head_importance() measures it). share: of all rows that stay, above 0 and at most 1. least: the
    share of its rows that each head keeps whatever their importance, 0 to share; give the share that sinks and window take.
    Source: KVzip, arXiv 2505.23416.
    """
    try:
        numbers = [[[float(x) for x in head] for head in layer] for layer in importance]
    except (TypeError, ValueError) as e:
        raise TypeError(f"importance: must be, for each layer and each head, a list of numbers ({e})") from e
    return _core.head_budgets(numbers, share, least)


def query_statistics(queries: Any) -> Tuple[Any, ...]:
    """Mean [query heads, dim] and population covariance [query heads, dim, dim], float32, of queries [query heads, n, dim].

    Give queries before RoPE and without the first few tokens, which are unlike the rest (kvpress leaves out 4); then moved().
    """
    import numpy

    x = numpy.asarray(queries, dtype=numpy.float64)
    if x.ndim != 3 or x.shape[1] == 0:
        raise Error(f"queries: shape {list(x.shape)}: must be [query heads, 1 or more, dim]")
    mean = x.mean(1)
    x = x - mean[:, None]
    covariance = x.transpose(0, 2, 1) @ x / x.shape[1]
    return mean.astype(numpy.float32), covariance.astype(numpy.float32)
