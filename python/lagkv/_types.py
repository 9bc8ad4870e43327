"""Types of arguments, for type checkers alone: nothing imports this when a program runs."""

from typing import Any, Optional, Protocol, Sequence, TypedDict, Union

from ._core import Rope


class DLPack(Protocol):
    """An array that speaks DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


Array = Union[DLPack, memoryview]


class Offers(TypedDict, total=False):
    """What may be offered beside keys and values; Layer has the shapes."""

    queries: Optional[Array]
    weights: Optional[Array]
    query_count: Optional[int]
    accumulated_attention: Optional[Array]
    key_statistics: Optional[Array]
    query_mean: Optional[Array]
    query_covariance: Optional[Array]
    query_factors: Optional[Array]
    importance: Optional[Array]
    positions: Optional[Array]
    rope: Optional[Rope]
    protect: Optional[Sequence[int]]
    head_budgets: Optional[Sequence[float]]
    scale: Optional[float]
