"""One module a schedule; `prune.schedule` names it, and its one public class gives its rounds."""
