"""Running code that a model wrote: in a child process, behind the strongest walls that the machine has.

`parent.run` starts the child and reads what it wrote; `backends.probe` finds out which walls there are; `values`
compares results. The child is told inputs, never what is expected of it: all judging happens in the parent.
(Nothing is imported here: the child should start fast.)
"""
