"""The router: takes requests from clients, spreads their sequences over instances, streams the answers."""
