"""What two stages share, and nothing else. Importing it readies the machine for mlx."""

from injection import runtime

# Both must happen before the first `import mlx.core` anywhere in the process.
runtime.load_fast_blas()
runtime.keep_freed_memory()
runtime.quiet_libraries()
