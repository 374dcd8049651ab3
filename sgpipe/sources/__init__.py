"""Sources: annotation files in, records out, without decoding any image.

They raise UserError where a file is missing, cut short, not JSON, or of another format, without
saying so each time.
"""
