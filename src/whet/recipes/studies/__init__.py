"""Papers that are grids: arms x tasks over the cells that every study is made of, and what is computed from them."""
