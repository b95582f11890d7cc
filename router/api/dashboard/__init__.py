"""The live page of the gateway: what every stage does and why, and a prompt to try."""
