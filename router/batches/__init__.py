"""Files and batches of the OpenAI API: durable in SQLite, run beside interactive requests."""
