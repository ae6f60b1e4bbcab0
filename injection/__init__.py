"""What two stages share, and nothing else. Importing it readies the machine for mlx."""

from injection import runtime

# Must happen before the first `import mlx.core` anywhere in the process.
runtime.load_fast_blas()
