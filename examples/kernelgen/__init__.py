"""A small kernel generator: tensor expressions in, Triton source text out.

It does what TorchInductor's back end does, at a size that can be read in an hour, and it imports neither Triton
nor torch. Lowest module first; imports point downwards only:

    ir         expressions and graphs
    reference  what a graph computes, in plain Python
    passes     simplification, common subexpressions, fusion
    tiling     tile sizes, warps and stages, by a cost model
    printer    one fused group becomes the text of one Triton function
    interp     enough of `triton.language`, in plain Python, to run that text
    check      parses and runs every generated kernel and compares it with the expression it came from
    programs   the tensor programs that the example generates kernels for
    driver     ties the above together, kernel by kernel, and writes the module
"""
