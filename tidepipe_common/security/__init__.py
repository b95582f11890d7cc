"""Who may do what: certificates, tokens and keys go in, a caller, or a refusal, comes out."""
