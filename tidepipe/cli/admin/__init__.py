"""`tidepipe admin`: what operators ask and order. One module per command, or per group of them."""
