"""Output lengths: what a prompt says about them, in numbers; trained models of them; how they are stored."""
