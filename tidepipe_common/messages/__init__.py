"""Anthropic's Messages API: bodies become those of chats, and answers are said in its blocks and events."""
