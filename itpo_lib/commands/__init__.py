"""The commands of `itpo`, each a function that imports what is heavy when it is called."""
