"""The miniworld itself: scenes, their images, captions and relations, without any model."""
