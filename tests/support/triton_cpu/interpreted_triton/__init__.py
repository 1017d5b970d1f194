"""A Triton backend for the CPU that compiles nothing: with TRITON_INTERPRET=1 kernels are interpreted, and Triton only
needs a backend to exist. It lets vLLM's V2 model runner start without a GPU."""
