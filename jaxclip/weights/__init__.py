"""Other people's checkpoints <-> our parameters, and surgery on trees of them."""
