"""Small vectors of float32 for numba: the channels of one pixel or lattice point, all at once.

numba has no such type, and LLVM does not find these vectors by itself in loops over few channels.
They are plain LLVM vectors of 1, 2, 4 or 8 numbers, so they work on every processor. Inside jitted
code `zeros(4)` makes one; functions that take it are compiled for its width.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

WIDTHS = (1, 2, 4, 8)


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


def _address(context, builder, array_type, array, number, vector: Vector):
    """Where vector `number` lies in an array that is read as one vector after another."""
    data = context.make_array(array_type)(context, builder, array).data
    start = builder.mul(number, ir.Constant(number.type, vector.width))
    return builder.bitcast(builder.gep(data, [start]), _llvm(vector).as_pointer())


def _spread(builder, number, vector: Vector):
    """A vector with the same number in every place."""
    empty, place = ir.Constant(_llvm(vector), ir.Undefined), ir.IntType(32)
    first = builder.insert_element(empty, number, ir.Constant(place, 0))
    everywhere = ir.Constant(ir.VectorType(place, vector.width), [0] * vector.width)
    return builder.shuffle_vector(first, empty, everywhere)


@intrinsic(prefer_literal=True)
def zeros(typing, width):
    """A vector of zeros; `width` is a number written out in the code."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    vector = Vector(width.literal_value)

    def generate(context, builder, signature, arguments):
        return ir.Constant(_llvm(vector), [0.0] * vector.width)
    return vector(width), generate


@intrinsic
def load(typing, array, number, like):
    """Vector `number` (uint64) of a contiguous float32 array, as wide as the vector `like`."""
    def generate(context, builder, signature, arguments):
        value = builder.load(_address(context, builder, array, arguments[0], arguments[1], like))
        value.align = 4
        return value
    return like(array, types.uint64, like), generate


@intrinsic
def store(typing, array, number, value):
    """Write vector `number` (uint64) of a contiguous float32 array."""
    def generate(context, builder, signature, arguments):
        place = _address(context, builder, array, arguments[0], arguments[1], value)
        builder.store(arguments[2], place).align = 4
        return context.get_dummy_value()
    return types.void(array, types.uint64, value), generate


@intrinsic
def add(typing, a, b):
    """a + b."""
    def generate(context, builder, signature, arguments):
        return builder.fadd(*arguments)
    return a(a, a), generate


@intrinsic
def scale(typing, a, factor):
    """factor · a, the factor a float32."""
    def generate(context, builder, signature, arguments):
        return builder.fmul(arguments[0], _spread(builder, arguments[1], a))
    return a(a, types.float32), generate


@intrinsic
def scale_add(typing, a, factor, b):
    """factor · a + b, rounded once where the processor can."""
    def generate(context, builder, signature, arguments):
        product = builder.fmul(arguments[0], _spread(builder, arguments[1], a), flags=["contract"])
        return builder.fadd(product, arguments[2], flags=["contract"])
    return a(a, types.float32, a), generate
