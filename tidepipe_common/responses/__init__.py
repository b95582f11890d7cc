"""OpenAI's Responses API: items go in, chats come out; parts of an answer go in, events come out."""
