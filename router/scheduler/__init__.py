"""The pure routing scheduler: requests and reports of instances go in, choices of instances come out."""
