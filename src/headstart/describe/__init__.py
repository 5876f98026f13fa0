"""What Inductor's decorators make of a generated source, as plain data.

    facts                  what is relied on of torch and Triton, here and in the adapter
    plain                  what decorators are given, as plain data
    recipe                 what a decorator makes of a source; the questions to the describer
    recipe_entries         recipes in stores and bundles; ownership: whether one says only what its source says
    devices                which GPU a source is for
    recorder, describer    the process that has torch, and runs decorators

Nothing here imports torch before it is called.
"""
