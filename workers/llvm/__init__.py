"""The LLVM backend: the toolchain as hermetic actions, llvmlite in child processes."""
