"""Documents to rows: HTML, Markdown and long text in passages with their headings and what stands before."""
