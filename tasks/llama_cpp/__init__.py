"""llama.cpp, an extra: GGUF files are loaded, judged, timed and quantised by it, in a child process."""
