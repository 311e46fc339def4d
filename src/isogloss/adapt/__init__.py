"""Level 5: make a pretrained encoder good for a domain, a language or a dialect; each method is a file."""
