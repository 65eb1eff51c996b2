"""The names that laion-clap imports for pictures."""


class _Unused:
    """Named in imports only."""


CenterCrop = Compose = InterpolationMode = Normalize = RandomResizedCrop = Resize = ToTensor = _Unused
