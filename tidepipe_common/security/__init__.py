"""Who may do what: certificates, the cluster token, API keys, and the rules for every service."""
