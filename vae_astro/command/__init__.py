"""What every command shares: how it ends, what it says of a mistake, its help.

Light: imported before anything heavy, while Hydra composes.
"""
