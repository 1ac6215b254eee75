"""The code of an llvmlite child process: standard library and llvmlite.binding only, so that it starts quickly."""
