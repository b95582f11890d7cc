"""`tidepipe model pull`: the name of a model in a package index goes in, its folder comes out."""
