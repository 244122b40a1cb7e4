"""What numba lacks: small vectors of float32, and fetching memory ahead of its use.

The vectors hold the channels of one pixel or lattice point, all at once. numba has no such type,
and LLVM does not find them by itself in loops over few channels. They are plain LLVM vectors of 1,
2, 4 or 8 numbers, so they work on every processor. Inside jitted code `zeros(4)` makes one;
functions that take it are compiled for its width.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic, models, register_model

WIDTHS = (1, 2, 4, 8)

# What numba asks of an intrinsic: its signature, and the function that writes its LLVM code.
Generated = tuple[Signature, Callable[..., ir.Value]]


class Vector(types.Type):
    """numba's type of a vector of `width` float32 numbers."""

    def __init__(self, width: int):
        self.width = width
        super().__init__(name=f"Vector{width}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector: Vector):
        super().__init__(manager, vector, _llvm(vector))


def _llvm(vector: Vector) -> ir.VectorType:
    return ir.VectorType(ir.FloatType(), vector.width)


def _address(context, builder, array_type, array, number, vector: Vector) -> ir.Value:
    """Where vector `number` lies in an array that is read as one vector after another."""
    data = context.make_array(array_type)(context, builder, array).data
    start = builder.mul(number, ir.Constant(number.type, vector.width))
    return builder.bitcast(builder.gep(data, [start]), _llvm(vector).as_pointer())


def _lane(number: int) -> ir.Constant:
    return ir.Constant(ir.IntType(32), number)


def _cell(context, builder, array_type, arguments, lane: int, clamp: bool) -> ir.Value:
    """Address of [first + lane, x] in the array, of its last row at most if `clamp`."""
    array, first, x = arguments
    made = context.make_array(array_type)(context, builder, array)
    rows, width = (builder.extract_value(made.shape, axis) for axis in (0, 1))
    row = builder.add(first, ir.Constant(first.type, lane))
    if clamp:
        last = builder.sub(rows, ir.Constant(rows.type, 1))
        row = builder.select(builder.icmp_unsigned(">", row, last), last, row)
    return builder.gep(made.data, [builder.add(builder.mul(row, width), x)])


def _spread(builder, number, vector: Vector) -> ir.Value:
    """A vector with the same number in every place."""
    empty, place = ir.Constant(_llvm(vector), ir.Undefined), ir.IntType(32)
    first = builder.insert_element(empty, number, ir.Constant(place, 0))
    everywhere = ir.Constant(ir.VectorType(place, vector.width), [0] * vector.width)
    return builder.shuffle_vector(first, empty, everywhere)


@intrinsic(prefer_literal=True)
def zeros(typing, width) -> Generated | None:
    """A vector of zeros; `width` is a number written out in the code."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    vector = Vector(width.literal_value)

    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        return ir.Constant(_llvm(vector), [0.0] * vector.width)
    return vector(width), generate


@intrinsic
def load(typing, array, number, like) -> Generated:
    """Vector `number` (uint64) of a contiguous float32 array, as wide as the vector `like`."""
    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        value = builder.load(_address(context, builder, array, arguments[0], arguments[1], like))
        value.align = 4
        return value
    return like(array, types.uint64, like), generate


@intrinsic
def store(typing, array, number, value) -> Generated:
    """Write vector `number` (uint64) of a contiguous float32 array."""
    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        place = _address(context, builder, array, arguments[0], arguments[1], value)
        builder.store(arguments[2], place).align = 4
        return context.get_dummy_value()
    return types.void(array, types.uint64, value), generate


@intrinsic
def collect(typing, rows, first, x, like) -> Generated:
    """Column x of the contiguous float32 array `rows` [C, W], from row `first` on, as a vector.
    Where it is wider than what is left of the rows, the last one fills it up. All uint64."""
    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        pixel = ir.Constant(_llvm(like), ir.Undefined)
        for lane in range(like.width):
            place = _cell(context, builder, rows, arguments[:3], lane, clamp=True)
            pixel = builder.insert_element(pixel, builder.load(place), _lane(lane))
        return pixel
    return like(rows, types.uint64, types.uint64, like), generate


@intrinsic
def add_column(typing, rows, first, x, value) -> Generated:
    """Add a vector to column x of `rows`, from row `first` on; each lane must have its row."""
    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        for lane in range(value.width):
            place = _cell(context, builder, rows, arguments[:3], lane, clamp=False)
            number = builder.extract_element(arguments[3], _lane(lane))
            builder.store(builder.fadd(builder.load(place), number), place)
        return context.get_dummy_value()
    return types.void(rows, types.uint64, types.uint64, value), generate


@intrinsic
def add(typing, a, b) -> Generated:
    """a + b."""
    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        return builder.fadd(*arguments)
    return a(a, a), generate


@intrinsic
def scale(typing, a, factor) -> Generated:
    """factor · a, the factor a float32."""
    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        return builder.fmul(arguments[0], _spread(builder, arguments[1], a))
    return a(a, types.float32), generate


@intrinsic
def scale_add(typing, a, factor, b) -> Generated:
    """factor · a + b, rounded once where the processor can."""
    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        product = builder.fmul(arguments[0], _spread(builder, arguments[1], a), flags=["contract"])
        return builder.fadd(product, arguments[2], flags=["contract"])
    return a(a, types.float32, a), generate


@intrinsic
def prefetch(typing, array, number) -> Generated:
    """Bring the cache line of element `number` (uint64) of a contiguous array nearer: it will be
    needed soon. Changes nothing else, so a place that is never used does no harm."""
    def generate(context, builder, signature, arguments) -> ir.Value:
        """LLVM code of a call."""
        data = context.make_array(array)(context, builder, arguments[0]).data
        byte, number_type = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        form = ir.FunctionType(ir.VoidType(), [byte] + [number_type] * 3)
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], form)
        read, keep, of_data = (ir.Constant(number_type, value) for value in (0, 3, 1))
        builder.call(fetch, [place, read, keep, of_data])
        return context.get_dummy_value()
    return types.void(array, types.uint64), generate
