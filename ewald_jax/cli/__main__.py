"""`python -m ewald_jax.cli`, the same as `ewald-jax`."""

from ewald_jax.cli import main

if __name__ == "__main__":
    main()
