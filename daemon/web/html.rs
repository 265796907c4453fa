//! Text into HTML.
//!
//! Invariant: markup is written by us (`&'static str`), everything else is escaped: nothing a cluster holds can be markup.

/// HTML that is being written.
#[derive(Debug, Default)]
pub(crate) struct Html(String);

impl Html {
    /// Markup. Only what stands in this program's source can be given.
    pub(crate) fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// Text, also for attribute values in double quotes. Control characters, and those that change the direction in
    /// which the text around them is read, are shown as a replacement character.
    pub(crate) fn text(&mut self, text: &str) -> &mut Html {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(c),
                c if c.is_control() || turns(c) => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
        self
    }

    /// What was written.
    pub(crate) fn finish(self) -> String {
        self.0
    }
}

/// Unicode's direction marks, embeddings, overrides and isolates.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_markup() {
        let mut html = Html::default();
        html.raw("<b title=\"")
            .text("\" onload='x'")
            .raw("\">")
            .text("<script>&\u{1b}[31m\u{202e}</script>")
            .raw("</b>");
        let expected = "<b title=\"&quot; onload=&#39;x&#39;\">&lt;script&gt;&amp;\u{fffd}[31m\u{fffd}&lt;/script&gt;</b>";
        assert_eq!(html.finish(), expected);
    }

    proptest::proptest! {
        #[test]
        fn no_text_can_open_a_tag_or_close_an_attribute(text in ".*") {
            let mut html = Html::default();
            html.text(&text);
            let written = html.finish();
            assert!(!written.contains(['<', '>', '"', '\'', '\u{1b}', '\u{202e}']), "{written}");
        }
    }
}
