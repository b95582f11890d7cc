"""How model families write thoughts and calls of tools into their text: text in, typed parts out. Pure."""
