"""`python -m srpo_robot.cli` is `srpo-robot`."""

from srpo_robot.cli import main

if __name__ == "__main__":
    main()
