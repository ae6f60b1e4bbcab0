"""What two stages share, and nothing else. Importing it readies the machine for mlx."""

from injection import blas, runtime

# All of it must happen before the first `import mlx.core` anywhere in the process.
blas.load()
runtime.keep_freed_memory()
runtime.compute_in_order()
runtime.quiet_libraries()
