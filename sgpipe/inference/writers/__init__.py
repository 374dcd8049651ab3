"""Write predictions to files, one module per format."""
