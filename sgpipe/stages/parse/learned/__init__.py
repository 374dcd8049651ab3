"""The learned parser: a small network over spaCy's hidden states, dependency trees and the
relations of the rules.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
