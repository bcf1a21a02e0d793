"""What a person sees of Whet: the displays and tables behind the command."""
