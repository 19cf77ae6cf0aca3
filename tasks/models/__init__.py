"""Loading, saving and looking into language models; the only room that knows a model family."""
